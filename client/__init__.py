"""A hospital's side: from a folder of images to a release."""
