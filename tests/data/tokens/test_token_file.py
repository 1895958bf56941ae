import pytest

from mlflow_finetune_plugin.data.tokens.batches import TokenBatch
from mlflow_finetune_plugin.data.tokens.renderer import Example
from mlflow_finetune_plugin.data.tokens.token_file import TokenFile


def digest(folder, examples, template="t"):
    with TokenFile(folder / "x.arrow", template) as file:
        file.write(TokenBatch.of(examples), "task")
    return file.digest()


def test_digest_sees_every_bit(tmp_path):
    base = [Example([1, 2, 3], [0, 1, 1]), Example([4], [1])]
    changed = [
        [Example([1, 2, 3], [0, 0, 1]), Example([4], [1])],  # one bit of a mask
        [Example([1, 2, 7], [0, 1, 1]), Example([4], [1])],  # one token
        [Example([1, 2, 3, 4], [0, 1, 1, 1])],  # the same tokens, joined
        [Example([4], [1]), Example([1, 2, 3], [0, 1, 1])],  # another order
    ]
    digests = {digest(tmp_path, examples) for examples in [base, *changed]} | {digest(tmp_path, base, "other")}
    assert len(digests) == 6
    assert digest(tmp_path, base) in digests


@pytest.mark.fault
def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    def write_and_fail():
        with TokenFile(tmp_path / "x.arrow", "t") as file:
            file.write(TokenBatch.of([Example([1], [1])]), "task")
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []
