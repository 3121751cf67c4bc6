"""`memo bench`: what this machine does, measured.

Scope: the commands' face; the measuring is in the packages below (`ssd.bench`). Open `cli.py`.
"""
