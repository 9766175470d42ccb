"""The k largest of a stream: by a sample that brackets the cut, or by histograms."""
