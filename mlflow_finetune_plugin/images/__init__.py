"""A picture of a row or of a request: read within limits, the right way up, in three colours, and the same wherever it is used.

A picture is written as a path, a data URL or bytes, or as a link to a host that the user allowed. It is checked before it is decoded.
Everything that shows a picture to a model takes ``Picture.pixels()``, so a rotation that a camera noted, a transparent background or
an unusual colour space cannot make training and serving see different things. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.images.fingerprints import AlikePictures, fingerprint
    from mlflow_finetune_plugin.images.links import PictureLinks
    from mlflow_finetune_plugin.images.model_inputs import PictureInputs
    from mlflow_finetune_plugin.images.picture import Picture, PictureFault, PictureLimits
    from mlflow_finetune_plugin.images.sources import read_picture
    from mlflow_finetune_plugin.images.store import PictureStore

__all__ = [
    "AlikePictures",
    "Picture",
    "PictureFault",
    "PictureInputs",
    "PictureLimits",
    "PictureLinks",
    "PictureStore",
    "fingerprint",
    "read_picture",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "AlikePictures": "fingerprints",
        "Picture": "picture",
        "PictureFault": "picture",
        "PictureInputs": "model_inputs",
        "PictureLimits": "picture",
        "PictureLinks": "links",
        "PictureStore": "store",
        "fingerprint": "fingerprints",
        "read_picture": "sources",
    },
)
