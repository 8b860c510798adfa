"""Evaluation of a bundle on labelled images: predictions, measures with intervals, plots, a report, comparisons."""
