"""`python -m synthclip`: the command line."""

from synthclip.cli import main

if __name__ == "__main__":
    main()
