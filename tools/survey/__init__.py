"""Parts of `survey_bases.py`.

- case: the result for one architecture
- commands: what is run for one architecture
- processes: processes forked from one that has imported the large libraries
- reader: what a reader with only Transformers and PEFT makes of the results
- small_bases: small random bases
- table: the results as a table in Markdown
"""
