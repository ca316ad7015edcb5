"""Images with labels: PASCAL VOC's folder layout, your own folder, and generated scenes."""
