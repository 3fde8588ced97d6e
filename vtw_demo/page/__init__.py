"""The demo's page: a reader of the library that shows one comparison at a time. It never touches torch itself."""
