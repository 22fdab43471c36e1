"""One file for each kind of place: a folder, S3, fsspec, Google Drive mounted or by its API."""
