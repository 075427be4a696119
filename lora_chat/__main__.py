"""`python -m lora_chat` is the command `lora-chat`."""

from lora_chat.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
