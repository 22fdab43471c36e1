"""The probe: a handful of questions that show whether a live teacher's log-probabilities can be trusted.

`questions` asks, `inspect_answer` counts what one answer holds, `compare_answers` puts two beside each other, `judge`
weighs them into a `verdict`, which says what a collection may do with it and is kept for a week. All of it is the
`Teacher` contract's, so it works for every plugin. The user's page: docs/probe.md.
"""
