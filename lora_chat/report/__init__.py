"""The report of a run as one web page that works offline, and the comparison of several runs.

- collect: The files of a run that the report shows, with limits and without trust
- run_files: The JSON files of a run, each bounded in size
- values: Checked access to JSON values of unknown shape
- element: HTML and SVG elements, in which every text is escaped
- document: The whole page: style, script and content security policy
- show: Numbers, times, sizes and JSON values as text, and tables
- figures: The figures, the verdict and the items of a comparison, read from its JSON
- curves: The curves of loss and learning rate, read from the metrics of a run
- chart: Line charts as SVG
- chart_scale: Scales and ticks of a chart
- chart_figure: A chart with its legend, switches and table
- section: Sections of a page, tables and notes
- verdict_section: The verdict and the metrics with their intervals
- curves_section: The curves of a run
- samples_section: Replies of base and adapted model side by side
- judgement_section: Votes of human judges on pairs of replies
- confusion_section: Confusion matrices of labels
- abilities_section: General abilities, and base beside parent and child
- seen_section: Recited training replies, and evaluation data that was trained on
- data_section: Lengths, tokens with loss, and the audit of the data
- run_section: Plan beside measurement, environment and recipe
- page: The page of one run
- run_differences: The differences of two runs, section by section
- run_comparison: The page of several runs
"""
