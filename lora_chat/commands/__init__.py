"""One file per command of the command line; each has `add_options(parser)` and `run(options)`.

- parser: the parser of the command line, and the table of commands
- options: options that several commands share
- memory_advice: the message of each command that runs out of memory
- sft: fine-tune a base with the settings of a recipe
- plan: estimate memory and time of a recipe
- data: show the data of a recipe as training sees it
- audit: search the data of a recipe for secrets, personal data and other problems
- recipes: list the recipes that come with lora_chat
- recipe: print a recipe with all its settings
- clean: show and delete caches and old checkpoints
- doctor: report what this machine can do
- chat: talk to an adapted model or to a base
- generate: continue a plain text, or answer it
- serve: answer requests over HTTP
- serve_admin: adapters that a running server loads and unloads
- error_report: The message and the exit code of an error
- eval: compare base and adapted model again
- judge: compare replies of two models without knowing which is which
- runs: list the runs in a folder
- diff: show settings, data and figures of two runs that differ
- report: write the report of a run as a web page, or compare several runs
- merge: merge adapters into a 16-bit model
- export: write an adapter in the format of another program
- pack: write the parcel of a run
- verify: check a parcel
- push: upload a parcel to the Hugging Face hub
- pull: download and verify an adapter from the Hugging Face hub
"""
