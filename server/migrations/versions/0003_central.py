"""What central differential privacy did in a round."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column to rounds."""
    op.add_column("rounds", sa.Column("central", sa.JSON))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("rounds", "central")
