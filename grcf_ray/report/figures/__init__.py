"""The figures of the report page: their data, then their drawing."""
