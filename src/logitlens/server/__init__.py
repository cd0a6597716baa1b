"""The page as a local web service: type a prompt, watch it being read, compare, export.

    app.py         routes: prompts in, progress and page data out
    order.py       what may be asked, and its limits
    desk.py        one model at a time, a queue, cancelling, what went wrong in words
    history.py     the readings made so far, and the orders they were asked with
    guard.py       who may ask: token in the path, Host, Origin, size; the security headers
    connection.py  uvicorn: limits of time and number, one line for what goes wrong
    run.py         a socket, the guarded routes, and an end on Ctrl-C

Needs the extra `serve` (starlette, uvicorn). It listens on 127.0.0.1 only unless asked otherwise.
"""
