"""A service beside a PACS (extra ``serve``): it receives studies, scores them, sends results back.

One process, three threads: a listener, a worker, and a web page. Everything that must survive a
crash stands in one SQLite file (`store`) and a spool folder; a study that arrived is on the disk
before the sender hears so.
"""
