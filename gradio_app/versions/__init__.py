"""A model's registered versions for the page: read from MLflow, rendered, promoted and rolled back.

Reading changes nothing in MLflow. A promotion runs the gate as a separate command, and a rollback first checks that
the aliases are as they were when the user confirmed it.
"""

from gradio_app.versions.cards import VersionCard, Versions, list_versions, read_card
from gradio_app.versions.data_html import read_training_data
from gradio_app.versions.promotion import PromotionEnd, Promotions
from gradio_app.versions.rollback import carry_out_rollback, plan_promotion, plan_rollback

__all__ = [
    "PromotionEnd",
    "Promotions",
    "VersionCard",
    "Versions",
    "carry_out_rollback",
    "list_versions",
    "plan_promotion",
    "plan_rollback",
    "read_card",
    "read_training_data",
]
