"""Pictures with labels: generated scenes, VOC's folders, a user's own."""
