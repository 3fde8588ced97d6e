"""What `python -m vtw_demo` does, a command a module."""
