"""Scores of a reply against its reference: additive statistics per item, and the figure of their sums.

- answers: Exact match, contains and token F1
- rouge: ROUGE-1, ROUGE-2 and ROUGE-L
- text: Normal form and tokens of a text, in every script
- totals: Figures of summed statistics
- translation: BLEU and chrF by sacrebleu
"""
