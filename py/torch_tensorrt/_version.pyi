__version__: str
BUILT_FOR: tuple[str, str]
