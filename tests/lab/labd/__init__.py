"""The lab: a WinRM server for tests, where no Windows can be had. See ../README.md."""
