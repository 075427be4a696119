"""Memory and time of a run, estimated before weights load; imports no torch, except in `dry_run`.

- calibration: Extrapolation from benchmarks of small models to the whole base
- device: The target device of a plan, with its memory and speed
- disk_space: Disk space that a run needs, and the check that it is free
- estimate: The estimate of a run: memory, time, disk, verdict and suggestion
- evaluation_budget: Number of held-out replies, bounded by planned time
- format: An estimate as text for the terminal
- general_time: The number of general items, and the seconds that they take
- gpu_kernels: Whether PyPI's build of PyTorch has kernels for a GPU
- gpu_names: The GPU that a name means
- gpu_specs: GPUs by name, with the figures of their data sheets
- layer_memory: Bytes that decoder layers allocate, as sums of products of widths
- local_device: This machine as a target device
- measured_shape: Shape of a model that was measured without weights
- merge_plan: A later `merge` of a GPU run
- notes: What a user should know beside the figures of an estimate
- overrides: Plans with other values of settings, and the difference of two plans
- parity_memory: Bytes that a parity check of a 16-bit model needs beside the weights
- phase_memory: Peak bytes of every phase of a run
- phase_time: Seconds of every phase of a run
- settings_search: The search for settings that fit a device
- trained_parts: Memory of modules and token rows that are trained beside LoRA
- training_memory: Peak bytes of training one micro-batch
- validation: Measurements of the validation set during training
- weight_cache: Number of layers whose dequantized weights fit on a GPU
- weight_memory: Bytes of the weights of base and adapter
- workload: The steps of a run, its micro-batches and the largest of them
"""
