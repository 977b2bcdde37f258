"""The newest head of each site's audit log that was seen: a witness against putting back an older copy."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of witnesses."""
    op.create_table(
        "witnesses",
        sa.Column("site", sa.String(64), primary_key=True),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_table("witnesses")
