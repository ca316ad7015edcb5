"""CNNs made ready: their layers, loading, preprocessing."""
