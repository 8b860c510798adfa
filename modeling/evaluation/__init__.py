"""What a bundle is worth on labelled images: predictions, measures with intervals, plots, a report, comparisons."""
