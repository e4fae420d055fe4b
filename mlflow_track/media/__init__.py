"""Images, texts and histograms: from what the caller has to files."""
