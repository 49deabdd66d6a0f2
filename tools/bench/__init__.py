"""The benchmark: what starts, verbs, memory and streams cost beside runc and crun.

``./dev bench`` runs it.  It asserts nothing: it measures, and writes a table,
JSON and plots.  A section is one file in :mod:`bench.sections` with one
function; :mod:`bench.world` gives it contenders, bundles and a place to put
figures, and removes everything afterwards.
"""
