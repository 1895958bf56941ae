"""The table of PEFT's methods that are offered as adaptations. Checked with peft 0.21.2.

Learning rates for bases of hidden size 512 and more are those of PEFT's own comparison (method_comparison/MetaMathQA: Llama 3.2 3B,
5,000 steps, share of GSM8K solved), where it has the method. A rate for smaller bases is one at which tiny bases learned.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mlflow_finetune_plugin.adaptations._peft.row import (
    MethodOption,
    PeftMethod,
    Rate,
    any_weight,
    differs_from,
    reflections_differ,
    take_first_weights,
)
from mlflow_finetune_plugin.adaptations._peft.sizes import SizeRule
from mlflow_finetune_plugin.methods import Quantization

_Positive = Annotated[int, Field(ge=1)]
_Scale = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_BOTH: tuple[Quantization, ...] = ("nf4", "int8")


def _compared(rate: float, solved: float) -> Rate:
    return Rate(rate, f"PEFT's comparison on Llama 3.2 3B, where it solved {solved} % of GSM8K (LoRA: 47.8 %)")


def _tiny(rate: float) -> Rate:
    return Rate(rate, "lowered the loss of tiny bases in trials of 20 steps; other rates were not compared")


def _rank(default: int, description: str, rule: SizeRule | None = None, multiple_of: int = 1) -> MethodOption:
    return MethodOption("rank", "r", _Positive, default, description, rule, multiple_of=multiple_of)


def _dropout(peft_name: str) -> MethodOption:
    return MethodOption("dropout", peft_name, _Share, 0.0, "Dropout on the update's input.")


METHODS: tuple[PeftMethod, ...] = (
    PeftMethod(
        name="vera",
        title="VeRA",
        summary="learned vectors scale random matrices that all layers share",
        paper="Kopiczko et al. 2023, arXiv 2310.11454",
        config="VeraConfig",
        options=(
            _rank(256, "Rank of the shared random matrices; the trained vectors grow with it little."),
            _dropout("vera_dropout"),
        ),
        trains="two vectors of each layer",
        rate=_compared(1e-3, 35.4),
        small_rate=_tiny(2e-2),
        has_effect=differs_from(vera_lambda_b=0),
        serving="convertible",
        conversion="exact at the rank",
        takes_transposed=True,
    ),
    PeftMethod(
        name="pvera",
        title="PVeRA",
        summary="VeRA whose inner vector is drawn at random while training, and is its mean afterwards",
        paper="arXiv 2512.07703",
        config="PveraConfig",
        options=(_rank(256, "Rank of the shared random matrices."), _dropout("pvera_dropout")),
        trains="three vectors of each layer",
        rate=_compared(3e-3, 35.6),
        small_rate=_tiny(2e-2),
        has_effect=differs_from(pvera_lambda_b=0),
        serving="convertible",
        conversion="exact at the rank",
        takes_transposed=True,
    ),
    PeftMethod(
        name="loha",
        title="LoHa",
        summary="the elementwise product of two low-rank updates",
        paper="FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098",
        config="LoHaConfig",
        options=(
            _rank(8, "Rank of both updates; their product has up to its square. auto: 8.", "smaller_side"),
            MethodOption(
                "alpha",
                "alpha",
                _Positive,
                8,
                "Scale: the update is multiplied by alpha/rank; auto: the rank.",
                times_rank=1,
            ),
        ),
        trains="four matrices of each layer",
        rate=_compared(1e-4, 39.3),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(hada_w2_b=0),
        serving="convertible",
        conversion="exact at the square of the rank",
        quantizations=("int8",),
    ),
    PeftMethod(
        name="lokr",
        title="LoKr",
        summary="the Kronecker product of a small matrix and a low-rank one",
        paper="LyCORIS, Yeh et al. 2023, arXiv 2309.14859",
        config="LoKrConfig",
        options=(
            _rank(8, "Rank of the larger factor; auto: 8.", "smaller_side"),
            MethodOption(
                "alpha",
                "alpha",
                _Positive,
                8,
                "Scale: the update is multiplied by alpha/rank; auto: the rank.",
                times_rank=1,
            ),
        ),
        trains="two or three matrices of each layer",
        rate=_compared(3e-3, 46.6),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(lokr_w1=0, lokr_w1_a=0),
        serving="merge",
        conversion="none below full rank: 1.4 nats at rank 64 of 128",
        quantizations=("int8",),
    ),
    PeftMethod(
        name="oft",
        title="OFT",
        summary="rotates the inputs of each layer in blocks",
        paper="Qiu et al. 2023, arXiv 2306.07280",
        config="OFTConfig",
        options=(
            MethodOption(
                "block_size",
                "oft_block_size",
                _Positive,
                32,
                "Size of the rotated blocks; auto: the largest up to 32 that divides the inputs of every layer.",
                "divides_inputs",
            ),
        ),
        trains="one rotation of each block",
        rate=_compared(1e-4, 49.1),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(oft_R=0),
        serving="merge",
        conversion="none below full rank: 3.1 nats at rank 64 of 128",
        quantizations=_BOTH,
    ),
    PeftMethod(
        name="hra",
        title="HRA",
        summary="multiplies each weight matrix with a chain of reflections",
        paper="Yuan et al. 2024, arXiv 2405.17484",
        config="HRAConfig",
        options=(_rank(8, "Number of reflections, even; auto: 8.", "inputs", multiple_of=2),),
        trains="one vector for each reflection",
        rate=Rate(1e-3, "a guess: PEFT's comparison does not have the method, and it was not measured here"),
        small_rate=_tiny(5e-3),
        has_effect=reflections_differ,
        serving="convertible",
        conversion="exact at the number of reflections",
    ),
    PeftMethod(
        name="road",
        title="RoAd",
        summary="rotates and scales pairs of a layer's outputs",
        paper="Liao et al. 2024, arXiv 2409.00119",
        config="RoadConfig",
        options=(
            MethodOption(
                "variant",
                "variant",
                Literal["road_1", "road_2", "road_4"],
                "road_1",
                "Parameters of each pair: one, two or four angles and scales.",
            ),
            MethodOption(
                "group_size",
                "group_size",
                _Positive,
                64,
                "Outputs among which pairs are formed; auto: the largest even number up to 64 that divides the outputs of every layer.",
                "divides_outputs",
            ),
        ),
        trains="angle and scale of pairs of outputs",
        rate=_compared(1e-3, 38.5),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(road_theta=0, road_alpha=1),
        serving="merge",
        conversion="none below full rank: 3.8 nats at rank 64 of 128",
        quantizations=_BOTH,
    ),
    PeftMethod(
        name="ln_tuning",
        title="LN tuning",
        summary="trains a copy of the norms and nothing else",
        paper="Zhao et al. 2024, arXiv 2312.11420",
        config="LNTuningConfig",
        options=(),
        trains="the weights of the norms",
        rate=Rate(1e-3, "PEFT's comparison learned nothing at 1e-4 (0.0 % of GSM8K), so ten times that; not measured"),
        small_rate=_tiny(1e-2),
        has_effect=any_weight,
        serving="merge",
        conversion="none: no linear layer is changed",
        targets="norms",
        takes_transposed=True,
        dtypes=("float32",),
    ),
    PeftMethod(
        name="randlora",
        title="RandLoRA",
        summary="scaled sums of random low-rank matrices, together of full rank",
        paper="Albert et al. 2025, arXiv 2502.00987",
        config="RandLoraConfig",
        options=(
            _rank(32, "Rank of the random matrices; a smaller one trains more weights. auto: 32.", "smaller_side"),
            MethodOption(
                "alpha",
                "randlora_alpha",
                _Positive,
                640,
                "Scale of the update; auto: 20 times the rank.",
                times_rank=20,
            ),
            _dropout("randlora_dropout"),
        ),
        trains="two diagonal matrices for each random one",
        rate=_compared(1e-4, 47.8),
        small_rate=_tiny(1e-3),
        has_effect=differs_from(randlora_lambda=0),
        serving="merge",
        conversion="none below full rank",
        fixed={"save_projection": False},
        quantizations=_BOTH,
        takes_transposed=True,
    ),
    PeftMethod(
        name="miss",
        title="MiSS",
        summary="one small matrix is repeated along the inputs",
        paper="Kang and Yin 2024, arXiv 2409.15371",
        config="MissConfig",
        options=(
            _rank(64, "Rank of the update; auto: 64, at most the inputs of every layer.", "inputs"),
            _dropout("miss_dropout"),
        ),
        trains="one matrix of each layer",
        rate=_compared(1e-4, 48.7),
        small_rate=_tiny(2e-3),
        has_effect=differs_from(miss_block=0),
        serving="convertible",
        conversion="exact at the rank",
        quantizations=_BOTH,
    ),
    PeftMethod(
        name="shira",
        title="SHiRA",
        summary="trains a random choice of single weights",
        paper="Bhardwaj et al. 2024, arXiv 2406.13175",
        config="ShiraConfig",
        options=(
            _rank(
                32, "Trains as many weights as LoRA of this rank; auto: 32, at most what every layer holds.", "sparse"
            ),
        ),
        trains="rank x (inputs + outputs) single weights of each layer",
        rate=_compared(3e-4, 51.0),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(shira_weight=0),
        serving="merge",
        conversion="none below full rank",
        quantizations=("nf4",),
        without_weights=take_first_weights,
    ),
    PeftMethod(
        name="c3a",
        title="C3A",
        summary="adds a circular convolution of the inputs in blocks",
        paper="Chen et al. 2024, arXiv 2407.19342",
        config="C3AConfig",
        options=(
            MethodOption(
                "block_size",
                "block_size",
                _Positive,
                256,
                "Size of the blocks; auto: the largest up to 256 that divides both sides of every layer.",
                "divides_sides",
            ),
        ),
        trains="one kernel for each pair of blocks",
        rate=_compared(0.3, 48.7),
        small_rate=Rate(0.3, "as on large bases; on the embedded base 0.1 learned far less in 60 steps"),
        has_effect=differs_from(c3a_kernel=0),
        serving="merge",
        conversion="none below full rank: 5.6 nats at rank 64 of 128",
        fixed={"init_weights": True},
        quantizations=_BOTH,
    ),
    PeftMethod(
        name="fourierft",
        title="FourierFT",
        summary="trains a few frequencies of the update's spectrum",
        paper="Gao et al. 2024, arXiv 2405.03003",
        config="FourierFTConfig",
        options=(
            MethodOption(
                "frequencies",
                "n_frequency",
                _Positive,
                1000,
                "Trained frequencies of each layer; auto: 1000, at most the weights of a layer.",
                "elements",
            ),
            MethodOption("scaling", "scaling", _Scale, 150.0, "Scale of the update."),
        ),
        trains="frequencies of each layer",
        rate=Rate(1e-2, "a guess: PEFT's comparison does not have the method, and it was not measured here"),
        small_rate=_tiny(1e-2),
        has_effect=differs_from(fourierft_spectrum=0),
        serving="merge",
        conversion="none: frequencies have a high rank",
        fixed={"init_weights": True},
        quantizations=_BOTH,
        takes_transposed=True,
    ),
    PeftMethod(
        name="delora",
        title="DeLoRA",
        summary="a low-rank update whose size is bounded and learned apart from its direction",
        paper="Bini et al. 2025, arXiv 2503.18225",
        config="DeloraConfig",
        options=(
            _rank(8, "Rank of the update; auto: 8.", "smaller_side"),
            MethodOption("bound", "delora_lambda", _Positive, 15, "Start of the bound on the update's norm."),
        ),
        trains="two matrices and a bound of each layer",
        rate=Rate(1e-3, "a guess: PEFT's comparison does not have the method, and it was not measured here"),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(delora_B=0),
        serving="convertible",
        conversion="exact at the rank",
    ),
    PeftMethod(
        name="gralora",
        title="GraLoRA",
        summary="low-rank updates of each block of a layer",
        paper="Jung et al. 2025, arXiv 2505.20355",
        config="GraloraConfig",
        options=(
            _rank(32, "Rank of the update, with as many weights as LoRA of this rank; auto: 32.", "smaller_side"),
            MethodOption(
                "alpha",
                "alpha",
                _Positive,
                64,
                "Scale: the update is multiplied by alpha/rank; auto: twice the rank.",
                times_rank=2,
            ),
            MethodOption(
                "blocks", "gralora_k", _Positive, 2, "Blocks along each side; auto: 2.", "divides_sides", divides="rank"
            ),
            _dropout("gralora_dropout"),
        ),
        trains="two matrices of each block",
        rate=Rate(1e-4, "LoRA's in PEFT's comparison, which does not have this method; not measured here"),
        small_rate=_tiny(2e-3),
        has_effect=differs_from(gralora_B=0),
        serving="convertible",
        conversion="exact at the rank times the blocks",
        quantizations=_BOTH,
        takes_transposed=True,
    ),
    PeftMethod(
        name="hira",
        title="HiRA",
        summary="multiplies each weight elementwise with a low-rank matrix",
        paper="Huang et al., ICLR 2025",
        config="HiraConfig",
        options=(_rank(32, "Rank of the factor; auto: 32.", "smaller_side"), _dropout("hira_dropout")),
        trains="two matrices of each layer",
        rate=Rate(1e-3, "a guess: PEFT's comparison does not have the method, and it was not measured here"),
        small_rate=_tiny(5e-3),
        has_effect=differs_from(hira_B=0),
        serving="merge",
        conversion="none: the update has the rank of the base's weights",
        takes_transposed=True,
    ),
)
"""The rows, in the order in which they are listed."""
