"""Figures of records: what each kind shows (`charts`), and how it is drawn and written (`draw`)."""
