"""``python -m merge_models.merge.cli``."""

from merge_models.merge.cli import main

if __name__ == "__main__":
    main()
