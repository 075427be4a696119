"""What the user asks for: recipes, plans, and the limits that several parts share.

- audit: The part of a recipe that says what is done about each kind of thing an audit finds
- base: What all parts of a recipe have in common
- data: The part of a recipe that says where dialogues come from and how they are read
- limits: Limits that the planner and the code that obeys them share
- load: Strict YAML and `--set section.key=value` -> Recipe
- plan: Recipe + hardware -> every number resolved
- recipe: The recipe
- sizes: Sizes of memory as users write them, such as 12GiB
"""
