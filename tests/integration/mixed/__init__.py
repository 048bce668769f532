"""An ordinary day of a hospital, all of it at once, and what must be true of the gateway afterwards.

`stand` is the hospital, `day` what everybody who works in it shares. The works: `wards` let random
histories happen (`tests/histories`: reports, changes of the PACS), `consumers` fetch images, `desk` is
everybody else: the administrator, monitoring, a RIS that errs, a DMP that has its moments. `trail` holds
the audit trail against what was done.
"""
