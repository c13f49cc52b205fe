"""The control plane as a process: one asyncio loop around the synchronous runtime, and the HTTP API.

routing.py    pure: the cell's state as the router's table
views.py      the cell's state as the API's views
probes.py     readiness of replicas
control.py    the loop: inputs in, tick, commands out; autoscalers; samples
logs.py       log files of tasks
api.py        HTTP API
openapi.py    its description, made from the routes
__main__.py   the process
"""
