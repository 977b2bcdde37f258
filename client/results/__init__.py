"""What a model says of an image, in files that a viewer or PACS can show."""
