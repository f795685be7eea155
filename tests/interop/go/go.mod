module podway.io/tests/interop

go 1.26

require github.com/osrg/gobgp/v3 v3.37.0
