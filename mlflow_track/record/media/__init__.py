"""The index of images, texts and histograms of a run."""
