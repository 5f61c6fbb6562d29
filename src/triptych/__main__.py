"""``python -m triptych``: what launchers such as ``accelerate launch -m triptych`` start."""

from triptych.cli import main

if __name__ == "__main__":
    main()
