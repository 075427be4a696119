"""Several processes that train one adapter together.

- accelerate_variables: The settings of `accelerate launch`, which the recipe replaces
- agent: torchrun's agent for this machine
- beats: The beats of a process, and the time limits of a watch
- connect: The connections of the processes: torch.distributed's rendezvous and default group
- copies: Copies of tensors of the first process
- failure: The failure that ends all processes
- group: Values that the processes of a group exchange
- launch: `--processes N`, torchrun's agent for this machine
- peers: The processes of a group as the system of this machine sees them
- rank: The number of this process among the processes that train together
- session: The life of a process in a group: join, work, and leave with the one message that matters
- shares: Division of dialogues among processes
- torch_group: The group over torch.distributed
- watch: A thread that ends this process when another one fails
"""
