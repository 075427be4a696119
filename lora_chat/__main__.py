"""`python -m lora_chat` is the command `lora-chat`."""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the working directory, where `python -m` looks for modules first
    from lora_chat.cli import main

    raise SystemExit(main())
