"""Memory and time of a run, estimated before weights load; imports no torch.

- calibration: What small models of a base's widths took on this machine -> what the whole base would take
- device: What a run is planned for
- disk_space: Bytes that a run writes, and whether there is room for them
- estimate: Everything that a plan can say before weights load
- format: A forecast as a table that a tired person understands
- gpu_specs: GPUs by name, with the figures of their makers' papers
- layer_memory: What decoder layers allocate, as sums of products of widths
- local_device: The machine at hand as a target
- phase_memory: Peak bytes of every phase of a run, from shapes alone
- phase_time: Seconds of every phase, from operations to be done and the speed of the device
- settings_search: Which settings fit a device
- training_memory: Peak bytes of training one micro-batch, from shapes alone
- workload: What a run goes through
"""
