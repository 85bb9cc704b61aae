"""The version of the wheel and of the package; the first two numbers are those of the torch that it is built for."""

VERSION = "2.15.0"
