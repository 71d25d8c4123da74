from slos.records.report import main

if __name__ == "__main__":
    main()
