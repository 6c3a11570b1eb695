"""One call on its way from request to outcome, alone (`sending`) or in a run (`bulk`).

Knows turns and answers; knows neither SQL nor HTTP.
"""
