"""The page as a local web service: type a prompt, watch it being read, compare, export.

    app.py      routes: prompts in, progress and page data out
    order.py    what may be asked, and its limits
    desk.py     one model at a time, a queue, cancelling, what went wrong in words
    guard.py    who may ask: token in the path, Host, Origin, size; the security headers
    run.py      a socket, uvicorn, and an end on Ctrl-C

Needs the extra `serve` (starlette, uvicorn). Only 127.0.0.1 is listened on unless asked otherwise.
"""
