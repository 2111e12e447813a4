#!/bin/sh
# Table A5, mqar: see a5.sh.
exec sh configs/papers/adore/a5.sh mqar "$@"
