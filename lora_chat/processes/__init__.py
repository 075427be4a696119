"""Several processes that train one adapter together.

- group: What the processes of a group tell each other
- rank: The number of this process in its group
- shares: Division of dialogues among processes
- torch_group: The group over torch.distributed
"""
