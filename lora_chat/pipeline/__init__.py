"""The order of a run: each step is one call into a package below.

- audit_data: The audit of training data, validation data, questions and chat template, cached
- compare: The comparison of base and adapted model, shown and written into a run
- data_lengths: Lengths of the rows, prompts and replies of a run
- doctor: A report about this machine, one check for each line
- doctor_libraries: Checks of the libraries on the chosen device
- doctor_machine: Checks of the machine that need no PyTorch
- estimate: The estimate of a recipe or run, and the choice of open settings
- estimate_history: Estimated against measured memory and time
- evaluate: The comparison of an existing adapter with its base
- export_adapter: The export of an adapter to other programs, with parity checks
- fine_tune: A fine-tuning run from top to bottom
- held_out: The dialogues and questions that evaluate an existing adapter
- inspect_data: The data of a recipe as a run reads it
- load_data: The data of a plan: found, read, encoded and split
- machine_benchmark: Times and memory of small models on this machine, cached
- machine_benchmark_worker: The process that measures small models
- merge_adapters: The merge of one or several adapters into a 16-bit model
- open_adapter: A run, parcel or folder opened as an adapter with its base and chat template
- open_chat: A run, parcel, adapter or base opened for chat
- pack_run: The parcel of a finished run
- prepare: Everything that a run needs before weights load
- publish: Parcels uploaded to the hub and downloaded from it
- resume: The run and the checkpoint from which training continues
- run_identity: The fields that make two runs the same
- run_status: The progress of a run, and its messages when it is stopped
- sft_result: The result of a finished run
- verify_parcel: The verification of a parcel
"""
