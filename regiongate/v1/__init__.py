"""The generated stubs of `proto/regiongate/v1`."""
