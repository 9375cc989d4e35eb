"""One function for every command of `maskdm`."""
