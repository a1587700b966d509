"""What is wrong with a set of log-probabilities: numbers in, named causes out. Numpy alone, no engine.

dump -> totals.Totals (all tokens, in chunks) and evidence.Evidence (a sample of whole responses)
     -> rules.RULES, one function a cause -> Diagnosis

A file of any framework, by scripts/doctor.py; the steps of a run, by watch.Watch.
"""
